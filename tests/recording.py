"""A reporter that records what is reported, for tests that look at it."""

from microbert_cli.reporter import Reporter


class RecordingReporter(Reporter):
    """Records notes and warnings, apart and in `messages` together in their order, and steps."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.messages: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.messages.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.messages.append(text)

    def progress(self, stage: str, step: int, total: int, **numbers: float) -> None:
        self.steps.append((stage, step, total))
