//! The sizes that thumbnails have: a set, so that nobody makes the server keep a thousand of one image.

/// How an image is made smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// To fill the size, with what sticks out cut off.
    Crop,
    /// To fit into the size.
    Scale,
}

impl std::fmt::Display for Method {
    /// As the query parameter has it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Crop => "crop",
            Self::Scale => "scale",
        })
    }
}

/// What someone wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The least width in pixels.
    pub width: u32,
    /// The least height in pixels.
    pub height: u32,
    /// How it is made smaller.
    pub method: Method,
    /// Whether it should move if the image does; it must not otherwise.
    pub animated: bool,
}

/// The sizes that images are cropped to: the specification's, in its two aspect ratios.
const CROPPED: [(u32, u32); 8] =
    [(32, 32), (96, 96), (320, 240), (320, 320), (640, 480), (640, 640), (800, 600), (800, 800)];

/// The sizes that images are scaled to: the specification's, a small one, and one for dense screens.
const SCALED: [(u32, u32); 5] = [(96, 96), (320, 240), (640, 480), (800, 600), (1600, 1200)];

/// A size of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) method: Method,
}

/// How an image becomes a thumbnail: made so large, and then cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Width and height of the whole.
    pub(super) whole: (u32, u32),
    /// Width and height of its middle that stays.
    pub(super) middle: (u32, u32),
}

impl Wanted {
    /// The smallest size of the set that is large enough; none if the image itself is wanted.
    pub(super) fn size(&self) -> Option<Size> {
        let sizes = match self.method {
            Method::Crop => &CROPPED[..],
            Method::Scale => &SCALED[..],
        };
        let large_enough =
            sizes.iter().filter(|(width, height)| *width >= self.width && *height >= self.height);
        let (width, height) =
            *large_enough.min_by(|one, other| self.cost(**one).total_cmp(&self.cost(**other)))?;
        Some(Size { width, height, method: self.method })
    }

    /// The same, as large as the set has it.
    pub(in crate::media) fn of_the_set(&self) -> Self {
        let sizes = match self.method {
            Method::Crop => &CROPPED[..],
            Method::Scale => &SCALED[..],
        };
        let largest = sizes[sizes.len() - 1];
        let (width, height) = self.size().map_or(largest, |size| (size.width, size.height));
        Self { width, height, ..*self }
    }

    /// How badly a size does: for what is cropped the aspect ratio counts first, and then how large it is.
    fn cost(&self, (width, height): (u32, u32)) -> f64 {
        let area = f64::from(width) * f64::from(height) / 1e9;
        match self.method {
            Method::Crop => {
                let wanted = f64::from(self.width) / f64::from(self.height.max(1));
                (f64::from(width) / f64::from(height) / wanted).ln().abs() + area
            }
            Method::Scale => area,
        }
    }
}

impl Size {
    /// What becomes of an image of this width and height; none if it is not larger.
    pub(super) fn plan(&self, (width, height): (u32, u32)) -> Option<Plan> {
        if width <= self.width && height <= self.height {
            return None;
        }
        let (across, down) =
            (f64::from(self.width) / f64::from(width), f64::from(self.height) / f64::from(height));
        let ratio = match self.method {
            Method::Crop => across.max(down),
            Method::Scale => across.min(down),
        };
        // Never larger than it is.
        let scaled = |side: u32| scale(side, ratio.min(1.0));
        let whole = (scaled(width), scaled(height));
        let middle = (whole.0.min(self.width), whole.1.min(self.height));
        Some(Plan { whole, middle })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a ratio of at most 1 makes no side longer"
)]
fn scale(side: u32, ratio: f64) -> u32 {
    ((f64::from(side) * ratio).round() as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width: u32, height: u32, method: Method) -> Option<(u32, u32)> {
        let wanted = Wanted { width, height, method, animated: false };
        wanted.size().map(|size| (size.width, size.height))
    }

    #[test]
    fn the_smallest_size_that_is_large_enough_is_chosen() {
        for (width, height, expected) in [
            (1, 1, Some((96, 96))),
            (96, 97, Some((320, 240))),
            (240, 320, Some((640, 480))),
            (640, 480, Some((640, 480))),
            (801, 1, Some((1600, 1200))),
            (1601, 1, None),
            (u32::MAX, u32::MAX, None),
        ] {
            assert_eq!(size(width, height, Method::Scale), expected, "{width}x{height}");
        }
        for (width, height, expected) in [
            (32, 32, Some((32, 32))),
            (33, 33, Some((96, 96))),
            (200, 200, Some((320, 320))),
            (320, 240, Some((320, 240))),
            (64, 48, Some((320, 240))),
            (700, 700, Some((800, 800))),
            (801, 10, None),
        ] {
            assert_eq!(size(width, height, Method::Crop), expected, "{width}x{height}");
        }
    }

    #[test]
    fn images_are_made_smaller_and_never_larger() {
        let plan = |width, height, method, image| {
            let plan = Size { width, height, method }.plan(image);
            plan.map(|plan| (plan.whole, plan.middle))
        };
        assert_eq!(plan(96, 96, Method::Crop, (96, 96)), None);
        assert_eq!(plan(96, 96, Method::Scale, (10, 90)), None);
        assert_eq!(plan(96, 96, Method::Crop, (960, 480)), Some(((192, 96), (96, 96))));
        assert_eq!(plan(96, 96, Method::Crop, (1000, 50)), Some(((1000, 50), (96, 50))));
        assert_eq!(plan(320, 240, Method::Scale, (1000, 500)), Some(((320, 160), (320, 160))));
        assert_eq!(plan(320, 240, Method::Scale, (1, 10_000)), Some(((1, 240), (1, 240))));
    }
}
