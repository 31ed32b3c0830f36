"""The command `textinv`, also `python -m textinv_core`."""

import sys


def main() -> None:
    try:
        from .commands import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f'This command needs {error.name}, which is not installed. Type: pip install "textinv[standalone]"')
    app()


if __name__ == "__main__":
    main()
