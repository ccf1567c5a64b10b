"""Where lmms-eval looks for tasks of a plug-in. The paper's seven are its own; put task files of yours anywhere."""
