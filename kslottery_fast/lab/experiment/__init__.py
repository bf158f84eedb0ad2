"""The experiment: its arms, and the stages that they leave in a folder."""
