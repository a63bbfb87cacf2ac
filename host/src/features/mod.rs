//! Feature maps of images: extraction, the cache, tables of rows, parts made on several machines,
//! NPZ archives.

pub mod cache;
pub mod extraction;
pub mod npz;
pub mod parts;
pub mod table;
pub mod workers;
