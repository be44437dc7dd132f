"""The `tinyllm-grade` program: grades a day, explains the verdict, keeps the learner's progress."""
