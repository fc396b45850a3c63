"""The labelling database: tasks, people, assignments and answers, and what is exported from them.

The server (`instructlit label`) and everything that adds samples or exports labels use this package:
`tasks.add_tasks` imports records, `records.label_records` exports them. Nothing in it imports torch.
"""
