//! Policy files, and the network in quantised form. The network itself is
//! [`hyperion_placement::policy`].
