"""``kslottery compare``: many ways to tune a model, beside each other, over training seeds and languages.

A *cell* is one language and one training seed. In each cell every *arm* makes a model and is scored. Embed Tuning runs
once a cell and leaves the *evidence* from which arms choose their rows. To add an arm, add a line to ``arms.ARMS``; to
add a way to choose rows, a line to ``evidence.SELECTORS``.
"""
