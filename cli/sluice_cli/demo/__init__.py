"""`sluice demo`: the main features at work on one machine, told as a story with figures taken from the run."""
