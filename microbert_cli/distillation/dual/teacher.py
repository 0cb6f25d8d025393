"""A teacher that reads two vocabularies, its own and its student's, and may be trained with it."""

from typing import Any

import numpy as np
import torch
from torch import nn

from microbert_cli.data.corpus.joint_vocabulary import JointVocabulary
from microbert_cli.data.corpus.masking import teacher_part
from microbert_cli.models.capture import Batch, ModelOutputs, OutputRequest, forward_outputs
from microbert_cli.models.load import frozen


@torch.no_grad()
def extend_vocabulary(model: Any, joint: JointVocabulary) -> None:
    """Gives a masked-LM rows for the pieces that only its student has, in place.

    A new row begins as the mean of the rows of the pieces that the teacher writes the piece with, its bias likewise.
    """
    model.resize_token_embeddings(len(joint), mean_resizing=False)
    table_VD, bias_V = model.get_input_embeddings().weight, getattr(model.get_output_embeddings(), "bias", None)
    for number, piece in joint.new_pieces.items():
        ids = joint.teacher_pieces(piece)
        table_VD[number] = table_VD[ids].mean(0)
        if bias_V is not None:
            bias_V[number] = bias_V[ids].mean()


@torch.no_grad()
def cut_vocabulary(model: Any, joint: JointVocabulary) -> None:
    """Takes the rows of the student's pieces off again, in place: no tokenizer of the teacher's yields one."""
    model.resize_token_embeddings(joint.rows, mean_resizing=False)


class DualTeacher:
    """Answers on the teacher's part of a batch, with gradients where it is trained; else it is frozen.

    A hidden piece is predicted among the pieces of the vocabulary that its word was read in: each has a softmax of its own.
    """

    def __init__(self, model: nn.Module, joint: JointVocabulary, *, trained: bool):
        self.model, self.joint, self.trained = model if trained else frozen(model), joint, trained
        numbers = np.arange(len(joint))
        allowed_2V = np.stack([numbers < joint.rows, np.isin(numbers, joint.student_ids)])
        self.forbidden_2V = torch.from_numpy(~allowed_2V)

    def ask(self, batch: Batch, request: OutputRequest) -> ModelOutputs:
        """Returns the requested outputs of the teacher."""
        part = teacher_part(batch)
        outputs = forward_outputs(self.model, part, request)
        if outputs.token_logits is not None:
            from_student_P = part["from_student"].flatten()[part["token_positions"]]
            forbidden_PV = self.forbidden_2V.to(from_student_P.device)[from_student_P]
            outputs.token_logits = outputs.token_logits.masked_fill(forbidden_PV, float("-inf"))
        return outputs
