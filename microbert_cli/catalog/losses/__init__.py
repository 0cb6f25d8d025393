"""Losses, one a file, found by file name.

Each module says
    needs     what a forward pass must show: logits, hidden, scores, qkv, pooled, token_logits, token_head,
              labels, token_labels, unrelated, mask, augmented; or a function of the loss's parameters that says it
    over      "layers" (once per mapped layer, summed), "inner" (those below the student's last), "top" (the last one alone),
              "embedding" (layer 0 only) or "batch" (once)
    projects  optional: what of the student is mapped to the teacher's width first; the objective owns the map
    requires  optional: what teacher and student must have in common, of "tokens" (the same token ids), "heads", "width";
              without it that follows from `needs`
    divides   optional: the keyword parameter that must divide both nets' widths
and one function of the module's name. Its positional parameters are named after what they get, with a shape suffix
(`student_BTd`, `teacher_BTD`, `mask_BT`, `labels_B`, `augmented_B`); its keyword parameters are the recipe keys of the term.
`normalisation` is handed in by the objective.

B batch, T tokens, d student width, D teacher width, A attention heads, Q queries, K keys, C classes, P masked positions,
V vocabulary.
"""
