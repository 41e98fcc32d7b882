"""The command line, `vdnn` or `python -m vdnn`; each command is in vdnn/commands.

Exit status: 0 done, and it fits; 1 a failure while running; 2 the command is wrong; 3 it does not fit; 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys

import click

from vdnn import __version__
from vdnn.commands.compare import compare
from vdnn.commands.explain import explain
from vdnn.commands.fit import fit
from vdnn.commands.hardware import hardware
from vdnn.commands.measure import measure
from vdnn.commands.plan import plan
from vdnn.commands.policies import policies
from vdnn.commands.study import study
from vdnn.commands.train import train
from vdnn.commands.view import view


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vdnn")
def main() -> None:
    """Train convolutional networks in less memory than they need."""
    if os.getcwd() not in sys.path:  # module:function may be in the current directory
        sys.path.insert(0, os.getcwd())


for command in (plan, view, explain, compare, fit, study, train, measure, hardware, policies):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="vdnn")
