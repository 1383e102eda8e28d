"""YouTubeNet recomputed click by click."""

import torch

from drawn_features import NUM_BLOCKS, NUM_STORY_CLICKS, WIDTH, drawn_features
from storyrec.models.youtubenet import YouTubeNet


def test_user_is_the_mean_of_clicks_and_their_time_blocks() -> None:
    torch.manual_seed(0)
    ranker = YouTubeNet(width=WIDTH, num_time_blocks=NUM_BLOCKS, head_widths=(12, 7), dropout=0.5).eval()
    with torch.no_grad():
        ranker.time_blocks.weight[1:].normal_()
    features = drawn_features()
    logits_B = ranker(features)
    for row, num_clicks in enumerate(NUM_STORY_CLICKS):
        user_D = torch.zeros(WIDTH)
        for place in range(num_clicks):
            block = features.story_blocks_BS[row, place]
            user_D += (features.story_BSD[row, place] + ranker.time_blocks.weight[block]) / num_clicks
        expected = ranker.head(torch.cat([user_D, features.target_BD[row]]))[0]
        torch.testing.assert_close(logits_B[row], expected, atol=1e-5, rtol=1e-5)
