"""The agent: encoder, core, actor and critic; its size, its cost, whether it fits."""
