"""The command `mbert`, and `python -m microbert_cli`: signals and streams are seen to before anything else is imported."""

from microbert_cli import signals


def main() -> None:
    """Runs the command line as a process of its own."""
    signals.leave_on_signal()
    from microbert_cli import streams

    streams.open_closed()
    try:
        from microbert_cli.cli.main import main as run

        run()
    finally:
        signals.ignore_signals()  # the exit code stands; Python would end its last steps by the signal
        streams.silence_broken()


if __name__ == "__main__":
    main()
