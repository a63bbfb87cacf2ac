//! NPZ archives for NumPy: `npyz` writes the arrays, `zip` the archive (stored, 64-bit where
//! needed).

use std::io::{self, BufWriter, Seek, Write};

use npyz::{DType, TypeStr, WriterBuilder};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// Writer of an archive that `numpy.load` reads, array by array.
pub struct NpzWriter<W: Write + Seek> {
    zip: ZipWriter<W>,
}

impl<W: Write + Seek> NpzWriter<W> {
    /// Starts an archive.
    pub fn new(writer: W) -> Self {
        Self { zip: ZipWriter::new(writer) }
    }

    fn start(&mut self, name: &str) -> io::Result<()> {
        // A fixed date (the first of the format) keeps the bytes the same from run to run.
        let options = SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored)
            .last_modified_time(zip::DateTime::default())
            .large_file(true);
        self.zip.start_file(format!("{name}.npy"), options).map_err(io::Error::from)
    }

    /// Adds an array of f32 (`<f4`) or i64 (`<i8`) in row-major order.
    ///
    /// # Errors
    /// A write error, and a number of values that does not fit the shape.
    pub fn numbers<T: npyz::AutoSerialize>(
        &mut self,
        name: &str,
        shape: &[u64],
        values: impl Iterator<Item = T>,
    ) -> io::Result<()> {
        self.rows(name, shape, std::iter::once(Ok(values)), || |e| e)
    }

    /// As [`NpzWriter::numbers`], for values that come piece by piece and may fail; `wrong`
    /// converts an I/O error to one of the caller.
    ///
    /// # Errors
    /// The first error of `rows`; a write error; a number of values that does not fit the shape.
    pub fn rows<T: npyz::AutoSerialize, E, F: FnOnce(io::Error) -> E>(
        &mut self,
        name: &str,
        shape: &[u64],
        rows: impl Iterator<Item = Result<impl IntoIterator<Item = T>, E>>,
        wrong: impl Fn() -> F,
    ) -> Result<(), E> {
        self.start(name).map_err(wrong())?;
        // Without the buffer, each value would be a write to the archive with its own checksum.
        let options = npyz::WriteOptions::new().default_dtype().shape(shape);
        let mut writer = options
            .writer(BufWriter::with_capacity(1 << 16, &mut self.zip))
            .begin_nd()
            .map_err(wrong())?;
        for row in rows {
            writer.extend(row?).map_err(wrong())?;
        }
        writer.finish().map_err(wrong())
    }

    /// Adds a one-dimensional array of strings (`<U`, as wide as the longest).
    ///
    /// # Errors
    /// A write error.
    pub fn strings<S: AsRef<str>>(&mut self, name: &str, values: &[S]) -> io::Result<()> {
        self.start(name)?;
        let width = values.iter().map(|s| s.as_ref().chars().count()).max().unwrap_or(0).max(1);
        let type_str: TypeStr = format!("<U{width}").parse().map_err(io::Error::other)?;
        let mut writer = npyz::WriteOptions::<str>::new()
            .dtype(DType::Plain(type_str))
            .shape(&[values.len() as u64])
            .writer(&mut self.zip)
            .begin_nd()?;
        for value in values {
            writer.push(value.as_ref())?;
        }
        writer.finish()
    }

    /// Completes the archive.
    ///
    /// # Errors
    /// A write error.
    pub fn finish(self) -> io::Result<()> {
        self.zip.finish().map(drop).map_err(io::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};

    use super::*;

    #[test]
    fn npz_arrays_round_trip() {
        let mut bytes = Cursor::new(Vec::new());
        let mut npz = NpzWriter::new(&mut bytes);
        npz.numbers("x", &[2, 3], (0..6).map(|v| v as f32)).unwrap();
        npz.numbers("y", &[2], [7i64, -8].into_iter()).unwrap();
        npz.strings("names", &["brick", "größe"]).unwrap();
        npz.finish().unwrap();
        let mut zip = zip::ZipArchive::new(bytes).unwrap();
        let mut read = |name: &str| {
            let mut bytes = Vec::new();
            zip.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        };
        let x = read("x.npy");
        let array = npyz::NpyFile::new(&x[..]).unwrap();
        assert_eq!(array.shape(), [2, 3]);
        assert_eq!(array.into_vec::<f32>().unwrap(), [0., 1., 2., 3., 4., 5.]);
        assert_eq!(
            npyz::NpyFile::new(&read("y.npy")[..]).unwrap().into_vec::<i64>().unwrap(),
            [7, -8]
        );
        let names =
            npyz::NpyFile::new(&read("names.npy")[..]).unwrap().into_vec::<String>().unwrap();
        assert_eq!(names, ["brick", "größe"]);
    }

    #[test]
    fn a_wrong_count_of_npz_values_is_an_error() {
        let mut npz = NpzWriter::new(Cursor::new(Vec::new()));
        assert!(npz.numbers("x", &[3], [1f32].into_iter()).is_err());
    }

    #[test]
    fn npz_rows_form_one_array_and_their_errors_are_returned() {
        let archive = |rows: Vec<Result<Vec<u8>, String>>| {
            let mut bytes = Cursor::new(Vec::new());
            let mut npz = NpzWriter::new(&mut bytes);
            npz.rows("x", &[2, 2], rows.into_iter(), || |e: io::Error| e.to_string())?;
            npz.finish().unwrap();
            Ok::<_, String>(bytes.into_inner())
        };
        let mut whole = Cursor::new(Vec::new());
        let mut npz = NpzWriter::new(&mut whole);
        npz.numbers("x", &[2, 2], 1..=4u8).unwrap();
        npz.finish().unwrap();
        assert_eq!(archive(vec![Ok(vec![1, 2]), Ok(vec![3, 4])]).unwrap(), whole.into_inner());
        assert_eq!(archive(vec![Ok(vec![1, 2]), Err("gone".into())]).unwrap_err(), "gone");
        assert!(archive(vec![Ok(vec![1, 2])]).unwrap_err().contains("shape"));
    }
}
