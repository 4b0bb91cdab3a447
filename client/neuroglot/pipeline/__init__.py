"""From a task and a model to a folder with answers, tables, figures and a report; and several such runs on one page.

Imports all that is below it, `report` to `definitions`. Imported by `cli`; users call it as `neuroglot.analyses.run`.
"""
