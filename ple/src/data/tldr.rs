//! Posts to summarise: "SUBREDDIT: …\n\nTITLE: …\n\nPOST: …\n\nTL;DR:" (ALGORITHMS §5.3).

const POST: &str = "\n\nPOST: ";
const END: &str = "\n\nTL;DR:";

/// The query of a post record.
pub fn query(subreddit: &str, title: &str, post: &str) -> String {
    format!("SUBREDDIT: r/{subreddit}\n\nTITLE: {title}{POST}{post}{END}")
}

/// What stands before the post, and the post, if the query has this form.
pub fn post(query: &str) -> Option<(&str, &str)> {
    let body = query.strip_suffix(END)?;
    let at = body.find(POST)? + POST.len();
    Some((&body[..at], &body[at..]))
}

/// The longest query of this form that fits: paragraphs are dropped from the end of the post, then single characters.
pub fn cut(query: &str, fits: &mut dyn FnMut(&str) -> crate::Result<bool>) -> crate::Result<Option<String>> {
    let Some((head, mut post)) = post(query) else { return Ok(None) };
    let whole = |post: &str| format!("{head}{post}{END}");
    while let Some(at) = post.rfind('\n') {
        post = &post[..at];
        if fits(&whole(post))? {
            return Ok(Some(whole(post)));
        }
    }
    // Characters one by one, found by halving: more of a post is never fewer tokens.
    let ends: Vec<usize> = post.char_indices().map(|(at, _)| at).collect();
    let (mut low, mut high) = (0, ends.len());
    while low < high {
        let middle = (low + high) / 2;
        if fits(&whole(&post[..ends[middle]]))? { low = middle + 1 } else { high = middle }
    }
    Ok(low.checked_sub(1).map(|i| whole(&post[..ends[i]])))
}
