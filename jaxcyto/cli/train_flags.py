"""Parse the flags of train.py and explain errors in flags and configs in one line."""

import difflib
import linecache
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from jaxcyto.cli.moved import new_name

TRAIN = Path(sys.argv[0]).resolve()  # the script itself may be in the config's folder
CONFIGS = TRAIN.parent / "configs"


def parse_flags(argv: list[str], config: flags.FlagHolder) -> list[str]:
    """Parse flags with absl, and exit with one line instead of a traceback on failure.

    Args:
        argv: command line.
        config: flag of the config file.

    Returns:
        The arguments that are not flags.

    Raises:
        SystemExit: the flags or the config are wrong. The status is 2, and one line has been
            printed to stderr.
    """
    match = re.search(r"--config[= ]([^\s:]+)", " ".join(argv))
    path = Path(match[1]).resolve() if match else None
    if path is not None:
        sys.path.append(str(path.parent))  # a config may import other files of its folder
    try:
        rest = flags.FLAGS(argv)
        if hasattr(config.value, "data"):  # raises here if the file could not be read
            return rest
        message = f"{path}: get_config() returns {config.value!r}, not a Config or SegmentConfig"
    except Exception as error:  # the code of a config can raise anything
        message = explain_config(error, path)
    print(f"error: {explain_flag(message, argv)}", file=sys.stderr)
    raise SystemExit(2)


def explain_flag(message: str, argv: list[str]) -> str:
    """Translate a message of absl or ml_collections about a flag into plain words."""
    if "must have a value other than None" in message:
        missing = " and ".join(re.findall(r"flag (--\w+)=None", message))
        example = "python train.py --config configs/quickstart.py --workdir runs/quickstart"
        return f"{missing} missing, as in: {example}"
    if match := re.search(r"Field (\w+) not found on dataclass .*?\.(\w+)'", message):
        from jaxcyto import config

        fields = list(getattr(getattr(config, match[2]), "__dataclass_fields__", {}))
        hint = did_you_mean(match[1], fields)
        return f"no field {match[1]!r} in {match[2]}; {hint}fields: {', '.join(fields)}"
    if match := re.match(r"Unknown command line flag '(\w+)'", message):
        hint = did_you_mean(match[1], [], ["config", "workdir", "processes", "coordinator"])
        return f"unknown flag --{match[1]}; {hint}fields of the config start with --config."
    items = [word for word in argv if re.match(r"--config\.\S*\[\d+\]", word)]
    if message == "tuple index out of range" and items:
        return f"{items[0].split('=')[0]}: there is no such item; items count from 0"
    if match := re.match(r"Type .* of field (config\.\S+) is not supported", message):
        return f"--{match[1]}: neither a number nor a string: set it in your own config file"
    if not message.startswith("flag "):
        return message
    for pattern, words in (
        (r"invalid literal for int\(\) with base 10: .*", "expected a whole number"),
        (r"could not convert string to float: .*", "expected a number"),
        (r"\('Non-boolean argument to boolean flag', .*\)", "expected True or False"),
        (r"Unable to parse value .*", "expected one of the fields within it, not the whole"),
    ):
        message = re.sub(pattern, words, message)
    return message.removeprefix("flag ")


def did_you_mean(name: str, fields: list[str], flag_names: Sequence[str] = ()) -> str:
    """Guess the intended name of a misspelled field or flag.

    Args:
        name: misspelled name.
        fields: fields of the dataclass in which it was not found, which are tried first.
        flag_names: flags of train.py, tried next with all fields of the configs.

    Returns:
        "did you mean ...? ", or "" if no name is similar.
    """
    from jaxcyto.config import Config, SegmentConfig
    from jaxcyto.config_io import field_paths

    if near := difflib.get_close_matches(name, fields, n=1):
        return f"did you mean {near[0]!r}? "
    paths = {f"--{flag}": flag for flag in flag_names}
    for kind in (Config, SegmentConfig):
        paths |= {f"--config.{path}": path.split(".")[-1] for path in field_paths(kind)}
    near = difflib.get_close_matches(name, paths.values(), n=1)
    return next((f"did you mean {key}? " for key, last in paths.items() if [last] == near), "")


def explain_config(error: Exception, path: Path | None) -> str:
    """Describe an error in the flags or the config.

    The message names the file and line if the config or a file of its folder raised the error.
    """
    if path is not None and not path.is_file():
        folders = {path.parent, path, CONFIGS}
        files = {file.stem: file for folder in folders for file in sorted(folder.glob("*.py"))}
        near = difflib.get_close_matches(path.stem, files, n=1)
        hint = f"; did you mean {os.path.relpath(files[near[0]])}?" if near else ""
        return f"--config {path}: {'a folder' if path.is_dir() else 'no such file'}{hint}"
    cause: BaseException | None = error
    while cause is not None:  # absl and ml_collections wrap some errors in others
        if isinstance(cause, SyntaxError) and cause.filename == "<unknown>":
            # the value of a flag is not a Python literal
            return f"a value of a --config flag: {cause.msg}; write tuples as \"('a', 'b')\""
        if isinstance(cause, SyntaxError) and cause.filename:
            return f"{cause.filename}:{cause.lineno}: {cause.msg}"
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            ours = path is not None and Path(frame.filename).parent == path.parent
            if ours and Path(frame.filename) != TRAIN:
                what = new_name(cause, _statement(frame)) or f"{type(cause).__name__}: {cause}"
                return f"{frame.filename}:{frame.lineno}: {what}"
        cause = cause.__cause__ or cause.__context__
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def _statement(frame: traceback.FrameSummary) -> str:
    """Return the lines of the statement that raised an error."""
    first, last = frame.lineno or 1, frame.end_lineno or frame.lineno or 1
    return "".join(linecache.getline(frame.filename, n) for n in range(first, last + 1))
