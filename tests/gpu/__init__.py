"""What must hold on a GPU, in bfloat16: a command of its own, see CONTRIBUTING.md."""
