"""`python -m preprocessing COMMAND ...`: from a corpus of videos to latent shards. Each command has its own --help."""

import importlib
import sys

from infra.cli import ExitCode, run_command

# Imported only when asked for: the encoder's libraries take seconds to load.
COMMANDS = {
    "synthesize": ("preprocessing.synthetic.command", "main", "draw a synthetic driving corpus with exact labels"),
    "plan": ("preprocessing.run", "main_plan", "fix every clip of a corpus with its place, and forecast the cost"),
    "verify": (
        "preprocessing.verify",
        "main",
        "check every byte of a shard set; --repair encodes again what is damaged",
    ),
    "card": ("preprocessing.card", "main", "write card.md, stats.json and a contact sheet"),
    "inspect": ("preprocessing.inspect_clip", "main", "decode one clip of a shard set to an MP4 or a sheet"),
    "export": ("preprocessing.export", "main", "copy a shard set as WebDataset tars or MosaicML MDS"),
    "run": ("preprocessing.run", "main_run", "plan, then encode into latent shards; safe to repeat"),
}


def main() -> ExitCode:
    """Run the command named first on the command line."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m preprocessing COMMAND ... [--help]\n")
        for name, (_, _, purpose) in COMMANDS.items():
            print(f"  {name:<11} {purpose}")
        return ExitCode.DONE
    if arguments[0] not in COMMANDS:
        raise ValueError(f"no command {arguments[0]!r}; there are {', '.join(COMMANDS)}")
    module, function, _ = COMMANDS[arguments[0]]
    code: ExitCode = getattr(importlib.import_module(module), function)(arguments[1:])
    return code


if __name__ == "__main__":
    run_command(main)
