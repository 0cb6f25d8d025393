"""The built-in task of several labels a row: which topics does a sentence of Python's documentation touch?

A sentence of 6 to 24 words in lower case, without its last punctuation mark. Its labels are the topics of its words, by
TOPICS, in any number, none among them. Half of these words, chosen by hash, are then taken out, so that their topics have to be
seen from what is left:

    close the underlying file if an error occurs     ->     close the underlying file if an occurs          errors, files

Splits are those of `python_docs`, by the hash of a passage. Every second of the sentences without a topic is left out, chosen
by hash.
"""

from microbert_cli.data.corpus.python_docs import MAX_ROW_WORDS, MIN_ROW_WORDS, passages, stable_hash

TOPICS = {
    "calls": """function functions method methods call calls called callable argument arguments parameter parameters caller
        return returns returned returning""",
    "classes": "class classes object objects instance instances attribute attributes type types subclass subclasses",
    "errors": "error errors exception exceptions raise raises raised fail fails failed failure invalid traceback warnings",
    "files": "file files filename filenames directory directories path paths folder folders disk pathname open opened",
    "numbers": "number numbers integer integers float floats int decimal digit digits zero sum size length count index",
    "text": "string strings text character characters str unicode encoding encoded line lines message word words",
    "sequences": "list lists tuple tuples sequence sequences iterable iterator iterators item items element elements dict "
    "dictionary mapping key keys set sets",
    "processes": "thread threads process processes task tasks lock locks event events loop loops queue wait waits blocking",
    "network": "socket sockets server servers client clients http url urls request requests host port address header headers",
}  # fmt: skip
TOPIC_OF = {word: topic for topic, words in TOPICS.items() for word in words.split()}
MARKS = ".,:;!?()[]'\"`*"
LEAST_LEFT = 4  # words


def topic_rows(split: str) -> tuple[list[str], list[list[str]]]:
    """Returns texts and labels of `python-topics`, in the order of their hashes, so that the first n are a fair sample."""
    rows = []
    for passage in passages():
        for sentence in passage.sentences if passage.split == split else ():
            words = sentence.lower().rstrip(".:;,!?").split()
            row_hash = stable_hash(f"topics: {' '.join(words)}")
            topics = sorted({TOPIC_OF[bare] for word in words if (bare := word.strip(MARKS)) in TOPIC_OF})
            left = [word for place, word in enumerate(words) if word.strip(MARKS) not in TOPIC_OF or row_hash >> place & 1]
            if MIN_ROW_WORDS <= len(words) <= MAX_ROW_WORDS and len(left) >= LEAST_LEFT and (topics or row_hash >> 32 & 1):
                rows.append((row_hash, " ".join(left), topics))
    rows.sort()
    return [text for _, text, _ in rows], [topics for _, _, topics in rows]
