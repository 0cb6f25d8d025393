"""Parameters of MobileBERT's students, counted by hand from their shapes."""

PARAMETERS = {  # as a masked-LM, as an encoder with its pooler, as a classifier of two
    "mobilebert": (36_596_538, 24_581_888, 24_582_914),
    "mobilebert-tiny": (27_500_346, 15_485_696, 15_486_722),
    "ib-bert": (306_219_834, 294_467_840, 294_468_866),
}
