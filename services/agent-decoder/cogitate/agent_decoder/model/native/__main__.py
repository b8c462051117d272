"""Builds the native step: ``python -m cogitate.agent_decoder.model.native [--all]``."""

import argparse
import sys

from cogitate.agent_decoder.model.native import library

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Builds the native step ahead of its first use, for this machine."
    )
    parser.add_argument(
        "--all", action="store_true", help="for every instruction set: an image may run anywhere"
    )
    args = parser.parse_args()
    for wanted in library.CAPABILITIES if args.all else [library.capability()]:
        try:
            sys.stdout.write(f"native step for {wanted}: {library.build(wanted)}\n")
        except library.Unavailable as error:
            sys.stdout.write(f"native step for {wanted}: {error}; torch will do its work\n")
