"""Commands of launch.py beside a launch: dry run, debug, advise, test split, predict."""
