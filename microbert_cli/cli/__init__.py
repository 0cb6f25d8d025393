"""The shell: the only home of typer and rich, and of exit codes becoming real."""
