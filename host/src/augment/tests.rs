use proptest::prelude::*;
use rayon::prelude::*;
use serde_json::Value;

use super::*;

const IDENTITY: Transform = Transform {
    theta: 0.0,
    tx: 0.0,
    ty: 0.0,
    shear: 0.0,
    zx: 1.0,
    zy: 1.0,
    flip_horizontal: false,
    flip_vertical: false,
    brightness: None,
};

fn fill_of(name: &str, value: f64) -> Fill {
    match name {
        "nearest" => Fill::Nearest,
        "reflect" => Fill::Reflect,
        "wrap" => Fill::Wrap,
        "constant" => Fill::Constant(value),
        other => panic!("{other}"),
    }
}

/// Every case that `record_keras.py` recorded.
#[test]
fn variants_are_those_of_keras() {
    let fixture: Value = serde_json::from_str(include_str!("fixture.json")).unwrap();
    let values: Vec<f32> = include_bytes!("fixture.f32")
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    let mut expected = &values[..];
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() >= 40);
    for case in cases {
        let picture = &fixture["pictures"][case["picture"].as_u64().unwrap() as usize];
        let rgb: Vec<u8> =
            picture["rgb"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u8).collect();
        let number = |name: &str| case[name].as_f64().unwrap();
        let flag = |name: &str| case[name].as_bool().unwrap();
        let transform = Transform {
            theta: number("theta"),
            tx: number("tx"),
            ty: number("ty"),
            shear: number("shear"),
            zx: number("zx"),
            zy: number("zy"),
            flip_horizontal: flag("flip_horizontal"),
            flip_vertical: flag("flip_vertical"),
            brightness: case["brightness"].as_f64(),
        };
        let fill = fill_of(case["fill"].as_str().unwrap(), fixture["fill_value"].as_f64().unwrap());
        let [width, height] =
            ["width", "height"].map(|side| picture[side].as_u64().unwrap() as usize);
        // Keras swaps the sides.
        let center = [height, width].map(|side| side as f64 / 2.0 - 0.5);
        let ours = transform.apply_about(&rgb, width, center, fill);
        if width == height {
            assert_eq!(transform.apply(&rgb, width, fill), ours);
        }
        let keras;
        (keras, expected) = expected.split_at(ours.len());
        for (at, (ours, keras)) in ours.iter().zip(keras).enumerate() {
            // Brightness truncates to integers, so a rounding error of 1e-6 below one would move
            // the result by the factor.
            assert!((ours - keras).abs() < 1e-3, "{at}: {ours}, but Keras has {keras}: {case}");
        }
    }
    assert!(expected.is_empty());
}

fn fills() -> impl Strategy<Value = Fill> {
    prop_oneof![
        Just(Fill::Nearest),
        Just(Fill::Reflect),
        Just(Fill::Wrap),
        (0.0..255.0).prop_map(Fill::Constant)
    ]
}

fn images() -> impl Strategy<Value = (usize, Vec<u8>)> {
    (1usize..20, 1usize..20)
        .prop_flat_map(|(w, h)| (Just(w), prop::collection::vec(any::<u8>(), 3 * w * h)))
}

fn rounded(transform: Transform, rgb: &[u8], width: usize, fill: Fill) -> Vec<u8> {
    transform.apply(rgb, width, fill).iter().map(|v| v.round_ties_even() as u8).collect()
}

proptest! {
    #[test]
    fn no_range_returns_the_image(
        (width, rgb) in images(), seed: u64, epoch: u64, fill in fills(),
    ) {
        let none = Augmentation { fill, ..Augmentation::NONE };
        let variant = none.variant(seed, epoch, &Fingerprint::of(&rgb), &rgb, width);
        prop_assert_eq!(variant, rgb.clone());
        // So does a matrix that turns once around.
        let turn = Transform { theta: 720.0, ..IDENTITY };
        if let Fill::Nearest | Fill::Reflect = fill {
            prop_assert_eq!(rounded(turn, &rgb, width, fill), rgb);
        }
    }

    #[test]
    fn flips_are_involutions(
        (width, rgb) in images(), horizontal: bool, vertical: bool, fill in fills(),
    ) {
        let flip = Transform { flip_horizontal: horizontal, flip_vertical: vertical, ..IDENTITY };
        let once = rounded(flip, &rgb, width, fill);
        prop_assert_eq!(rounded(flip, &once, width, fill), rgb.clone());
        let height = rgb.len() / 3 / width;
        let x = if horizontal { width - 1 } else { 0 };
        let y = if vertical { height - 1 } else { 0 };
        prop_assert_eq!(&once[..3], &rgb[3 * (y * width + x)..][..3]);
    }

    #[test]
    fn threads_and_order_make_no_difference((width, rgb) in images(), seed: u64, fill in fills()) {
        let brightness = Some((0.5, 1.5));
        let all =
            Augmentation { vertical_flip: true, brightness, fill, ..Augmentation::TUTORIAL };
        let make = |epoch: u64| all.variant(seed, epoch, &Fingerprint::of(&rgb), &rgb, width);
        let serial: Vec<_> = (0..16).map(make).collect();
        let epochs = (0..16u32).into_par_iter().rev();
        let parallel: Vec<_> = epochs.map(|epoch| make(epoch.into())).collect();
        prop_assert!(serial.iter().rev().eq(&parallel));
    }

    /// At any distance, each value lies between those of the image, or is the fill.
    #[test]
    fn nothing_reaches_outside(
        (width, rgb) in images(), theta in -180.0..180.0, tx in -1e4..1e4, ty in -1e4..1e4,
        zx in 0.01..2.0, fill in fills(),
    ) {
        let transform = Transform { theta, tx, ty, zx, shear: 80.0, ..IDENTITY };
        let low = f32::from(*rgb.iter().min().unwrap());
        let high = f32::from(*rgb.iter().max().unwrap());
        for value in transform.apply(&rgb, width, fill) {
            let filled = matches!(fill, Fill::Constant(v) if value == v as f32);
            prop_assert!(filled || (low - 1e-3..=high + 1e-3).contains(&value), "{}", value);
        }
    }
}

#[test]
fn shifts_move_along_their_own_axis() {
    // A white pixel in the middle of 9x5; whole shifts.
    let mut rgb = vec![0; 3 * 9 * 5];
    rgb[3 * (2 * 9 + 4)..][..3].fill(255);
    let place = |transform: Transform| {
        let out = rounded(transform, &rgb, 9, Fill::Constant(0.0));
        let index = out.chunks(3).position(|pixel| pixel == [255; 3]).unwrap();
        (index % 9, index / 9)
    };
    assert_eq!(place(Transform { tx: 2.0, ..IDENTITY }), (2, 2));
    assert_eq!(place(Transform { ty: -1.0, ..IDENTITY }), (4, 3));
    // The shift is along the axes of the variant, not of the image: the rotation is applied to
    // points after it.
    assert_eq!(place(Transform { theta: 180.0, tx: 1.0, ..IDENTITY }), (3, 2));
    assert_eq!(place(Transform { flip_horizontal: true, tx: 2.0, ..IDENTITY }), (6, 2));
}

#[test]
fn draws_fill_their_ranges() {
    let all = Augmentation {
        vertical_flip: true,
        brightness: Some((0.5, 1.5)),
        ..Augmentation::TUTORIAL
    };
    let draws: Vec<Transform> =
        (0..2000).map(|epoch| all.draw(7, epoch, &Fingerprint::of(b"x"), 100, 50)).collect();
    let check = |value: fn(&Transform) -> f64, low: f64, high: f64| {
        let values: Vec<f64> = draws.iter().map(value).collect();
        let width = high - low;
        assert!(values.iter().all(|v| (low..=high).contains(v)));
        assert!(
            values.iter().any(|&v| v < low + 0.02 * width)
                && values.iter().any(|&v| v > high - 0.02 * width)
        );
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        assert!((mean - (low + high) / 2.0).abs() < 0.03 * width, "{mean}");
    };
    check(|t| t.theta, -40.0, 40.0);
    check(|t| t.tx, -20.0, 20.0);
    check(|t| t.ty, -10.0, 10.0);
    check(|t| t.shear, -0.2, 0.2);
    check(|t| t.zx, 0.8, 1.2);
    check(|t| t.zy, 0.8, 1.2);
    check(|t| t.brightness.unwrap(), 0.5, 1.5);
    for flips in [
        draws.iter().filter(|t| t.flip_horizontal).count(),
        draws.iter().filter(|t| t.flip_vertical).count(),
    ] {
        assert!((900..1100).contains(&flips), "{flips}");
    }
    let other =
        |seed, epoch, content: &[u8]| all.draw(seed, epoch, &Fingerprint::of(content), 100, 50);
    assert!(
        other(7, 0, b"x") == draws[0]
            && other(8, 0, b"x") != draws[0]
            && other(7, 0, b"y") != draws[0]
    );
}
