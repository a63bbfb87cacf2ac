//! Readings of this process and of the machine.

use std::path::Path;

/// The file of the first thermal zone, which is the processor's on a Raspberry Pi.
const THERMAL_ZONE: &str = "/sys/class/thermal/thermal_zone0/temp";

/// Returns a memory reading of this process in bytes, by its name in `/proc/self/status`: `VmRSS`
/// is the resident memory, `VmHWM` its peak.
pub fn memory(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Returns the temperature of the processor in degrees Celsius.
pub fn cpu_temperature() -> Option<f64> {
    temperature(THERMAL_ZONE)
}

/// Reads a file of thousandths of a degree.
fn temperature(path: impl AsRef<Path>) -> Option<f64> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().parse::<f64>().ok()? / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperature_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("temp");
        assert_eq!(temperature(&path), None, "a machine without a sensor");
        for (text, expected) in
            [("48250\n", Some(48.25)), ("-1000\n", Some(-1.0)), ("hot\n", None), ("", None)]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(temperature(&path), expected, "{text:?}");
        }
    }

    #[test]
    fn memory_of_this_process() {
        assert!(memory("VmRSS") <= memory("VmHWM"));
        assert_eq!(memory("VmNone"), None);
    }
}
