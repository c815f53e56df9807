"""The runner inside the VM: takes one job, runs its agent, hands the work back, and stops.

It stands on the floor alone and on the standard library.  From the moment the agent has
started, everything that belongs to the agent's user is hostile: git and tar read it as that
user, and whatever the runner itself opens is reached without following a single symlink.
"""
