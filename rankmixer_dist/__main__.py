"""`python -m rankmixer_dist VERB ...`, as `rankmixer VERB ...`."""

from rankmixer_dist.verbs.main import main

if __name__ == "__main__":
    main()
