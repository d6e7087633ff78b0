"""Random faults from a seed over real daemons, and a checker that reads the history afterwards.

python -m tests.cluster.nemesis --seed 17      one campaign again: its plan, its faults, its verdict, its picture

plan.py       seed -> what will be done, as values and as text
faults.py     does it to the laboratory's machines, and heals it
register.py   the application: a register that logs every write on the disk that both machines share
client.py     writes and reads it all the time, from outside
shifted.py    starts a daemon whose wall clock can be shifted
history.py    what everybody recorded, as values
checker.py    history -> violations; pure
picture.py    history -> SVG
campaign.py   one campaign from its plan to its verdict
"""
