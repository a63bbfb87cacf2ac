//! The epochs of a training as a table.

use crate::trainer::EpochStats;

/// A quantity by epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// The name as in history.csv: `loss`, `accuracy`, with the prefix `val_` for the validation
    /// set.
    pub name: String,
    /// One value per epoch, from the first; `None` where there was none.
    pub values: Vec<Option<f64>>,
}

impl Column {
    /// The value of an epoch, counted from 0.
    pub fn at(&self, epoch: usize) -> Option<f64> {
        self.values.get(epoch).copied().flatten()
    }
}

/// The epochs of a training, in columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// All of equal length.
    pub columns: Vec<Column>,
}

impl History {
    /// Returns the columns of the trainer's history, without those that have no value at all, and
    /// without a learning rate that never changes. A further field of [`EpochStats`] is a further
    /// line here.
    pub fn of(epochs: &[EpochStats]) -> Self {
        type Field = fn(&EpochStats) -> Option<f64>;
        let fields: [(&str, Field); 5] = [
            ("loss", |e| Some(e.loss)),
            ("accuracy", |e| Some(e.accuracy)),
            ("val_loss", |e| e.val_loss),
            ("val_accuracy", |e| e.val_accuracy),
            ("lr", |e| Some(e.lr)),
        ];
        let columns = fields.map(|(name, field)| Column {
            name: name.into(),
            values: epochs.iter().map(field).collect(),
        });
        let is_informative = |c: &Column| match c.name.as_str() {
            "lr" => c.values.windows(2).any(|pair| pair[0] != pair[1]),
            _ => c.values.iter().any(Option::is_some),
        };
        Self { columns: columns.into_iter().filter(is_informative).collect() }
    }

    /// The number of epochs.
    pub fn epochs(&self) -> usize {
        self.columns.first().map_or(0, |column| column.values.len())
    }

    /// Writes the header, then a line per epoch; unknown values are empty.
    pub fn to_csv(&self) -> String {
        let line =
            |first: String, cells: Vec<String>| [vec![first], cells].concat().join(",") + "\n";
        let mut out = line("epoch".into(), self.columns.iter().map(|c| c.name.clone()).collect());
        for epoch in 0..self.epochs() {
            let cell = |c: &Column| c.at(epoch).map_or(String::new(), |value| value.to_string());
            out += &line((epoch + 1).to_string(), self.columns.iter().map(cell).collect());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_has_a_column_for_each_known_quantity() {
        let epoch = |epoch, val| EpochStats {
            epoch,
            loss: 0.5,
            accuracy: 0.25,
            val_loss: val,
            val_accuracy: val,
            lr: 0.5,
        };
        let with = History::of(&[epoch(1, Some(0.125)), epoch(2, None)]);
        assert_eq!(
            with.to_csv(),
            "epoch,loss,accuracy,val_loss,val_accuracy\n1,0.5,0.25,0.125,0.125\n2,0.5,0.25,,\n"
        );
        assert_eq!(History::of(&[epoch(1, None)]).to_csv(), "epoch,loss,accuracy\n1,0.5,0.25\n");
        let slower = History::of(&[epoch(1, None), EpochStats { lr: 0.25, ..epoch(2, None) }]);
        assert_eq!(slower.to_csv(), "epoch,loss,accuracy,lr\n1,0.5,0.25,0.5\n2,0.5,0.25,0.25\n");
        assert_eq!((with.epochs(), History::default().epochs()), (2, 0));
    }
}
