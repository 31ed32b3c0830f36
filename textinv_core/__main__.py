"""The command `textinv`, also `python -m textinv_core`."""

import os
import sys


def main() -> None:
    try:
        from .commands import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f'This command needs {error.name}, which is not installed. Type: pip install "textinv[standalone]"')
    try:
        app()
    except SystemExit as ended:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        from .training.parallel import end

        end(ended.code)


if __name__ == "__main__":
    main()
