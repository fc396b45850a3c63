"""The labelling database: tasks, people, assignments and answers, and what is read out of them.

Both the server (`instructlit label`) and whatever puts samples in or takes labels out go through here:
`tasks.add_tasks` takes records in, `records.label_records` gives records out. Nothing in it imports torch.
"""
