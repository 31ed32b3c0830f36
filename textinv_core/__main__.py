"""The command `textinv`, also `python -m textinv_core`."""

import os
import sys


def main() -> None:
    try:
        from .commands import run
        from .commands.process import heed_signals, ignore_signals, lasting_streams, status_of, status_written
    except KeyboardInterrupt:  # in the second in which this is imported
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name not in ("cyclopts", "rich"):
            raise
        sys.exit(f'This command needs {error.name}, which is not installed. Type: pip install "textinv[standalone]"')
    heed_signals()
    streams = lasting_streams()
    try:
        run()
    except (SystemExit, KeyboardInterrupt) as ended:
        ignore_signals()  # another one while Python ends would change the status, or leave a traceback
        code = status_of(ended) if isinstance(ended, KeyboardInterrupt) else ended.code or status_written(streams)
        if os.environ.get("WORLD_SIZE", "1") == "1":
            sys.exit(code)
        from .training.parallel import end

        end(code)


if __name__ == "__main__":
    main()
