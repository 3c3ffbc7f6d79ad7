"""Measurements. Each module answers one question, prints its command and its table, and runs by itself or with all:

python -m benchmarks            # all of them
python -m benchmarks --list     # which there are, and their questions
python -m benchmarks.soak       # one
"""
