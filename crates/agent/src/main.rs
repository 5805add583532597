//! (being furnished)
fn main() {
    println!("{:#?}", standin_agent::inventory::read());
}
