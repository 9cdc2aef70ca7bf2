"""The page at `/`: every task with its inputs, by Gradio (the extra `ui`). Its jobs are ordinary jobs."""
