"""The workstation half: checkpoint → verified bundle. Only this half imports torch and transformers."""
