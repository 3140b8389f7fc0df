"""The bundle that edgemm carries: Moonshine tiny-en, EfficientNet-lite0 and Silero VAD, in int8."""
