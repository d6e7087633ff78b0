"""Who may own a group when the nodes can't agree.

disk.py: a block device or file that every node reaches, used by the process of runtime/lease_io.py; admin.py: what the
command line does to it. The arbiter `none` needs no code here: the core then asks nobody (settings.Arbiter.type).
"""
