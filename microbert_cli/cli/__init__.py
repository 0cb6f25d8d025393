"""The command line: the only folder that imports typer and rich, and that turns exit codes into exits."""
