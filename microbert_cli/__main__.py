"""The command `mbert`, and `python -m microbert_cli`: signals and streams are seen to before anything else is imported."""

from microbert_cli import signals


def main() -> None:
    """Runs the command line as a process of its own."""
    signals.leave_on_signal()
    signals.open_closed_streams()
    try:
        from microbert_cli.cli.main import main as run

        run()
    finally:
        signals.ignore_signals()  # the exit code stands; Python would end its last steps by the signal
        signals.silence_broken_streams()


if __name__ == "__main__":
    main()
