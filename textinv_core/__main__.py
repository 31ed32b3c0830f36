"""The command `textinv`, also `python -m textinv_core`."""

import os
import sys


def main() -> None:
    try:
        from .commands import run
    except KeyboardInterrupt:  # in the second in which this is imported
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name not in ("cyclopts", "rich"):
            raise
        sys.exit(f'This command needs {error.name}, which is not installed. Type: pip install "textinv[standalone]"')
    try:
        run()
    except SystemExit as ended:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        from .training.parallel import end

        end(ended.code)


if __name__ == "__main__":
    main()
