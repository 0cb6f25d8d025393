"""Losses, one per file, found by file name.

Each module defines
    needs     the model outputs and batch entries it reads: logits, hidden, layers (the hidden states of all), scores, qkv,
              pooled, token_logits, token_head, labels, token_labels, unrelated, mask, augmented; or a function of the loss's
              parameters that returns them
    over      "layers" (once per mapped layer, summed), "inner" (all mapped layers but the last), "top" (only the last),
              "embedding" (layer 0 only) or "batch" (once)
    projects  optional: "hidden" = student vectors are projected to the teacher's width first; the objective owns the projection
    requires  optional: what teacher and student must have in common, of "tokens" (the same token ids), "heads", "width";
              without it that follows from `needs`
    bounds    optional: the lowest and the highest value of keyword parameters, {"temperature": (1e-3, 1e3)}; None = no bound
    divides   optional: the keyword parameter that must divide both models' widths
and one function of the module's name. Its positional parameters are named after the tensors they get, with a shape suffix
(`student_BTd`, `teacher_BTD`, `mask_BT`, `labels_B`, `augmented_B`); its keyword parameters are the recipe keys of the term.
`normalisation` is passed in by the objective.

B batch, T tokens, d student width, D teacher width, A attention heads, Q queries, K keys, C classes, P masked positions,
V vocabulary.
"""
