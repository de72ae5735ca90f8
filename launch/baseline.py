#!/usr/bin/env python
"""`rankmixer baseline` as a file, which launchers can start."""

from rankmixer_dist.command_line import run_verb
from rankmixer_dist.verbs.baseline import main

if __name__ == "__main__":
    run_verb(main)
