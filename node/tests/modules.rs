//! Which modules inside a crate may import each other. Between crates, Cargo decides.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{ItemMod, ItemUse, UseName, UseRename, UseTree, visit::Visit};

/// The modules of the server, and what each may import of this crate.
const SERVER: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("close", &[]),
    ("ids", &[]),
    ("metrics", &["close"]),
    ("transport", &["clock", "close", "ids", "metrics"]),
    ("server", &["clock", "close", "ids", "metrics", "transport"]),
    // A part of the program, to which the library is another crate.
    ("gateway", &[]),
];

/// What the transport must not know of: it carries any protocol.
const ABOVE_TRANSPORT: &[&str] = &["roomcast_protocol::socket_io", "roomcast_adapter::Adapter"];

#[test]
fn the_modules_of_the_server_import_what_the_table_allows() {
    let imports = imports_of("node");
    for (module, imported) in &imports {
        let row = SERVER.iter().find(|(name, _)| name == module);
        let (_, allowed) = row.unwrap_or_else(|| panic!("{module} is not in the table"));
        for other in imported {
            assert!(allowed.contains(&&**other), "{module} imports {other}");
        }
    }
    assert_eq!(imports.len(), SERVER.len(), "the table names what is there");
}

#[test]
fn no_crate_has_a_cycle_between_its_modules() {
    for name in ["protocol", "adapter", "node"] {
        let mut rest = imports_of(name);
        // A module that imports nothing of the rest cannot be part of a cycle.
        for _ in 0..rest.len() {
            let names: BTreeSet<_> = rest.keys().cloned().collect();
            rest.retain(|_, imported| !imported.is_disjoint(&names));
        }
        assert!(rest.is_empty(), "{name}: a cycle among {rest:?}");
    }
}

#[test]
fn the_transport_knows_no_namespaces() {
    for file in sources(&source_folder("node").join("transport")) {
        let mut paths = paths_of(&file, &[]).into_iter().map(|path| path.join("::"));
        let above = paths.find(|path| ABOVE_TRANSPORT.iter().any(|above| path.starts_with(above)));
        assert_eq!(above, None, "{}", file.display());
    }
}

/// The modules right below the root of a crate, and which of the others each imports.
fn imports_of(name: &str) -> BTreeMap<String, BTreeSet<String>> {
    let source = source_folder(name);
    let mut imports = BTreeMap::<_, BTreeSet<_>>::new();
    for file in sources(&source) {
        let relative = file.strip_prefix(&source).unwrap().with_extension("");
        let mut module: Vec<_> = relative.iter().map(|p| p.to_str().unwrap()).collect();
        if matches!(module[0], "lib" | "main") {
            continue;
        }
        if module.last() == Some(&"mod") {
            module.pop();
        }
        let imported = imports.entry(module[0].to_owned()).or_default();
        for path in paths_of(&file, &module) {
            if let [root, other, ..] = &path[..]
                && root == "crate"
                && other != module[0]
                // Not a module: a name that the root exports.
                && other.starts_with(char::is_lowercase)
            {
                imported.insert(other.clone());
            }
        }
    }
    imports
}

/// All paths of a file outside of its tests, from the root of the crate if they are relative.
fn paths_of(file: &Path, module: &[&str]) -> Vec<Vec<String>> {
    let mut paths = Paths {
        module,
        found: Vec::new(),
    };
    paths.visit_file(&syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap());
    paths.found
}

struct Paths<'a> {
    module: &'a [&'a str],
    found: Vec<Vec<String>>,
}

impl Paths<'_> {
    fn add(&mut self, path: &[String]) {
        let supers = path.iter().take_while(|part| *part == "super").count();
        let mut whole = path[supers..].to_vec();
        if supers > 0 && supers <= self.module.len() {
            let parent = &self.module[..self.module.len() - supers];
            let root = std::iter::once("crate").chain(parent.iter().copied());
            whole = root.map(str::to_owned).chain(whole).collect();
        }
        self.found.push(whole);
    }

    fn add_tree(&mut self, tree: &UseTree, mut before: Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.add_tree(&path.tree, before);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_tree(tree, before.clone());
                }
            }
            UseTree::Name(UseName { ident }) | UseTree::Rename(UseRename { ident, .. }) => {
                before.push(ident.to_string());
                self.add(&before);
            }
            UseTree::Glob(_) => self.add(&before),
        }
    }
}

impl Visit<'_> for Paths<'_> {
    fn visit_item_use(&mut self, item: &ItemUse) {
        self.add_tree(&item.tree, Vec::new());
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let parts: Vec<_> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.add(&parts);
        syn::visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &ItemMod) {
        // Unit tests may import what they like.
        if item.ident != "tests" {
            syn::visit::visit_item_mod(self, item);
        }
    }
}

fn source_folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .join(name)
        .join("src")
}

/// The source files below a folder, without files of tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs")
            && !path.ends_with("tests.rs")
        {
            files.push(path);
        }
    }
    files
}
