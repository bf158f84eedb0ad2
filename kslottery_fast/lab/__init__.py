"""The KS-Lottery experiment as a program."""
