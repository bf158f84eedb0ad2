"""Scores of a model on held-out pairs, with intervals, and the certification of a ticket model.

This package re-exports nothing. Its ``evaluate`` and ``certify`` are modules, and the functions of these names are
in ``kslottery_fast``.
"""
