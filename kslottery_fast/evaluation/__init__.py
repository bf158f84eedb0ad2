"""What a model does on held-out pairs, with intervals, and the certification of a ticket model.

Nothing is re-exported here: ``evaluate`` and ``certify`` are modules, and functions of ``kslottery_fast``.
"""
