"""`python -m microbert_cli` is `mbert`."""

from microbert_cli.cli.main import main

if __name__ == "__main__":
    main()
