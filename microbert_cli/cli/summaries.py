"""What each command does, in a line: all that `mbert --help` shows of it, so that it loads none of them.

The lines are the first paragraphs of the commands' own help, in the order of the help; a test compares them.
"""

SUMMARIES = {
    "distill": "From a table to a small fast classifier: teacher, student, export, and a table of what it "
    "is worth (recipe own-data).",
    "run": "Runs all stages of a recipe; skips what is up to date and says why it runs the rest.",
    "plan": "Steps, tokens, FLOPs, memory, disk and time of every stage; this machine is calibrated for seconds, once.",
    "doctor": "Makes small checks of a recipe before it runs: packages, device, inputs, labels, one step "
    "of training, disk and more.",
    "pretrain": "Trains a masked-LM on a corpus, from a model or from a student description.",
    "finetune": "Fine-tunes an encoder on a task; the best checkpoint on dev is kept.",
    "general-distill": "Stage one: distils a pre-trained teacher into a small student on plain text.",
    "augment": "Varies the training set of a task: masked-LM and word-vector neighbours (TinyBERT, Algorithm 1).",
    "expert-teacher": "Makes a fine-tuned teacher one of experts, dealt by importance and repaired: what "
    'moe.side = "teacher" is taught by.',
    "trim": "Cuts a model's vocabulary to the tokens that its texts use: tokenizer and embedding rows, the answers unchanged.",
    "task-distill": "Stage two: distils a fine-tuned teacher into a student, through all phases of the method.",
    "cascade": "Makes one model of two: the small one answers where it is sure, else the big one; checked on rows of dev.",
    "evaluate": "Official metrics, predictions per example, agreement with a teacher, submission files.",
    "predict": "One label a line, in the order of the texts; a score for regression.",
    "extract": "The plain BERT of one task, or without --task of each: its experts and head alone, logits equal to 1e-6.",
    "export": "Safetensors, ONNX fp32 and int8, the same with fused operators, parity checked on real rows, a model card.",
    "push": "Sends a finished output to the Hugging Face Hub: files that answer and the card, in one commit, "
    "private by default.",
    "bench": "Parameters, size, FLOPs, latency (batch 1) and throughput; an export directory enters with all its files.",
    "compare": "Trains several students on the same data, teacher and seeds, and tells them apart in one table.",
    "report": "Shows finished runs in one HTML file: results, curves, answers, lineage, costs; no model is loaded.",
    "verify": "Checks a directory and everything that it was made from against the hashes in their "
    "manifests; exit 5 if one differs.",
    "list": "Lists what there is and what it is: losses, methods, students, tasks and so on, and the keys of a recipe.",
    "show": "Prints the file behind a name.",
    "copy": "Copies the file behind a name, to be edited.",
    "cache": "Sizes of what is cached (token blocks, answers of teachers) by kind or by run; --clean "
    "removes it. Runs make it again.",
    "log": "Sends the losses, rates and dev scores of a finished run to a tracker, from its log.jsonl.",
    "env": "Shows versions, cores and settings, for a bug report.",
}
