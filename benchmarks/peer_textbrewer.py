"""Row of the table: TextBrewer 0.2.1.post1, an optional peer, through its own API: `pip install textbrewer==0.2.1.post1`.

Its BasicDistiller with `is_caching_logits` is its fastest way through the prediction stage: logits of every batch are kept in
memory before the first epoch. Rows are padded to the fixed maximum, as its examples do; models are transformers' own.
"""

import importlib.metadata
import importlib.util
import logging
import tempfile
from typing import Any

import ours
import torch
from distilling import BUCKETS, EPOCHS
from meter import Lap, Watch, compared, in_turns
from ours import PREDICTION, Pair
from shapes import Sample, Setup, bucketed, shuffled
from torch.utils.data import DataLoader, TensorDataset

NAME = "textbrewer"
VERSION = "0.2.1.post1"
Result = dict[str, Any]


def is_there() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec(NAME) is not None


def textbrewer(setup: Setup, steps: int, rounds: int) -> Result:
    """Prediction stage, cached epochs: mbert against TextBrewer with its cache of logits."""
    watch, pair, sample = Watch(), Pair(setup), bucketed(setup, BUCKETS * steps)
    peer = Pair(setup)
    objective = pair.objective(PREDICTION, ours.cached(pair, sample, PREDICTION))
    pair.watched(watch)
    peer.watched(watch)
    few = Sample(sample.rows, shuffled(sample).batches[:steps], setup.pad_id)
    contestants = {
        NAME: lambda: _lap(peer, few, watch),
        "mbert": lambda: ours.training_lap(objective, sample.batch, len(sample.batches), watch),
    }
    result = compared(in_turns(contestants, rounds=rounds), {f"mbert / {NAME}": 3.0})
    return result | {"version": importlib.metadata.version(NAME)}


def _lap(peer: Pair, sample: Sample, watch: Watch) -> Lap:
    """Fills the cache, then trains; a step lasts from one `optimizer.step()` to the next, the first is not measured."""
    from textbrewer import BasicDistiller, DistillationConfig, TrainingConfig

    logging.getLogger("Distillation").setLevel(logging.WARNING)
    optimiser = torch.optim.AdamW(peer.student.model.parameters(), lr=3e-5)
    size = len(sample.batches[0])

    def stepped(*_: Any) -> None:
        watch.stop(size)
        watch.start()

    optimiser.register_step_post_hook(stepped)
    with tempfile.TemporaryDirectory() as place:
        distiller = BasicDistiller(
            TrainingConfig(device="cpu", output_dir=place, ckpt_frequency=1, ckpt_epoch_frequency=EPOCHS + 1),
            DistillationConfig(temperature=1, kd_loss_type="ce", is_caching_logits=True),
            peer.teacher.model,
            peer.student.model,
            _logits,
            _logits,
        )
        with distiller:
            distiller.train(optimiser, _loader(sample, peer.setup.length), num_epochs=EPOCHS)
    watch.running = False
    return watch.lap()


def _logits(_: Any, output: Any) -> dict[str, Any]:
    return {"logits": output.logits}


def _loader(sample: Sample, width: int) -> Any:
    batches = [sample.batch(i, pad_to=width) for i in range(len(sample.batches))]
    names = ("input_ids", "attention_mask", "token_type_ids")
    data = TensorDataset(*(torch.cat([batch[name] for batch in batches]) for name in names))

    def together(rows: list[Any]) -> dict[str, Any]:
        return {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}

    return DataLoader(data, batch_size=len(sample.batches[0]), shuffle=True, drop_last=True, collate_fn=together)
